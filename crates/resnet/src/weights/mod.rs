//! Exchange formats: safetensors and PyTorch files.
