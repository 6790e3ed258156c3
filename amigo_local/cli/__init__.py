"""click commands and renderers. No logic of the product lives here."""
