def pil_to_tensor(image):
    raise NotImplementedError
