"""Where the package reaches beyond the public names of its hosts."""
