"""What the build of the documentation adds to Sphinx: operations as methods, commands as pages."""
