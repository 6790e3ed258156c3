"""What both faces say: events as sentences, values by their format, samples and memory as text."""
