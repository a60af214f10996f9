import torch
from torch.nn.functional import interpolate
from torch.nn.functional import pad as torch_pad

from torchvision.transforms import InterpolationMode

__all__ = ["InterpolationMode", "normalize", "pad", "resize"]


def resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True):
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    mode = interpolation.value
    return interpolate(image, size=list(size), mode=mode, align_corners=False, antialias=antialias)


def pad(image, padding, fill=0, padding_mode="constant"):
    left, top, right, bottom = padding
    assert padding_mode == "constant" and not any(fill if isinstance(fill, list) else [fill])
    return torch_pad(image, [left, right, top, bottom])


def normalize(image, mean, std, inplace=False):
    mean, std = (torch.as_tensor(v, dtype=image.dtype).view(-1, 1, 1) for v in (mean, std))
    return image.sub(mean).div_(std)
