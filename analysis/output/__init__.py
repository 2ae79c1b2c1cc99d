"""The result of any analysis as JSON, Markdown, CSV, plots and HTML."""
