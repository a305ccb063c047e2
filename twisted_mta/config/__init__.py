"""The configuration: schema, loader, errors that name the key, diff on reload."""
