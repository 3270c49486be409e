"""What is trained: language models, their experts and latent attention, from presets and Hugging Face configs."""
