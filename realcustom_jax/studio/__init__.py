"""The web page: create images, make stories, and look into the method. It needs Gradio (extra `studio`)."""
