"""TensorFlow's MirroredStrategy, for comparison."""
