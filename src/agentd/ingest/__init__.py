"""The ways in: each turns its wire form into the model's values and gives them to the service."""
