"""`plan --backbones`: which language model a cluster trains best in so many days; Performance Law beside our price."""
