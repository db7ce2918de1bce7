"""How fast is it? Training and sampling beside the libraries that people use, on the same tensors."""
