"""The Textual app, one file per screen."""
