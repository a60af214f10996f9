"""Profiles as rewrite tables: rules are data (spec/rules/rewrites.yaml), this package matches and applies them."""
