"""Fashion-MNIST, pictures of clothes of 28x28 pixels, with the network of McMahan et al."""
