"""What transformers' processor of Llama 4 calls of torchvision, as calls of torch.

torchvision's binary does not fit every build of torch, and transformers has this processor for torchvision only. The
functions here do what those of torchvision 0.28 do with images of bytes on a CPU; on the images of
tests/parity/test_images.py the results of both are the same to the bit.
"""

__version__ = "0.28.0"
