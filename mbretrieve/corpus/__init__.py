"""Sources to Documents: which files of a folder are worth reading (`walk`), and how each is cut into units (`read`)."""
