from seeing import exported

exported()
