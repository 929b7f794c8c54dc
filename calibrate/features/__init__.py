"""BatchNorm inputs, feature maps and their statistics."""
