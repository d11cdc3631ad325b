"""The parts of the package, in the folders that the package has."""
