"""Sources, mining, filters, chat rendering and loss masks."""
