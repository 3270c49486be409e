"""`--report page.html`: one page with the pictures of a plan, a simulation or a what-if, that needs no network."""
