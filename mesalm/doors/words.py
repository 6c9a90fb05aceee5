"""Help texts that several doors share."""

MODEL = "a run folder, a saved or published model's folder, or a name on the Hub"
OVERRIDES = "settings to change, as dotted.key=YAML value, for instance optim.learning_rate=1e-3"
