"""The MNIST digits, packed losslessly into `mnist.xz`; see LICENSE.md beside it."""
