"""Why a plan is what it is: what binds it, what would change it, and what others would do."""
