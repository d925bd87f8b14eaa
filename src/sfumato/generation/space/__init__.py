"""`sfumato export --space`: an exported model with a page of Gradio."""
