"""report: what a person reads: terminal, HTML and Markdown pages, figures, receipts, model cards, licences."""
