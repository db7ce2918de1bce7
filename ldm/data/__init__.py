"""Where images and points come from: torchvision's sets, a folder of images, and toy distributions."""
