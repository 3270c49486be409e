"""From rows of published measurements to the packed curves, with the error on families left out. Needs scipy."""
