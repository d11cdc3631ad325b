"""Pictures and tables of the numbers of layers, for papers, notebooks and browsers."""
