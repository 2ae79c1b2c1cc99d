"""The result of any analysis as JSON, Markdown, CSV, pictures and HTML."""
