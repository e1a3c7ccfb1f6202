"""The model card and efficiency.json: text, metadata, figures, the dense baseline."""
