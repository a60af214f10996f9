from seeing import exported

exported("crossing.yaml")
