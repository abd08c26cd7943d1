"""Who may do what: a request, its principal and its sandbox made into a decision, by Rego."""
