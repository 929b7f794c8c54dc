"""BatchNorm inputs, feature maps and the statistics taken of them."""
