"""From image files to what a model's graphs read: decoding, tiles, normalisation, and places in a prompt.

Only Pillow and numpy. Every number comes from a ``Recipe``, which the spec makes and an exported folder carries.
"""
