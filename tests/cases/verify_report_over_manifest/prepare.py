from llamagen import api

api.load("tiny.yaml").export("out", random_weights=0)
