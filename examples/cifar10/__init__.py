"""CIFAR-10, colour pictures of 32x32 pixels, with a small network or torchvision's resnet18."""
