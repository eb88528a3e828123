"""How much memory a request takes, foretold from the model's shapes."""
