"""SANA-WM: a picture, a prompt and a camera that is led by keys or by poses."""
