from llamagen import api

api.load("tiny.yaml").export("par", random_weights=0)
api.random_checkpoint("tiny.yaml", "par/checkpoint")
