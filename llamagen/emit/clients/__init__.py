"""Files that other programs read in an exported folder."""
