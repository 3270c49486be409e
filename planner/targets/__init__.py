"""`plan --for NAME`: what a program's layouts may be, whose code is priced, and which export holds the plan."""
