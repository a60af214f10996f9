from broken import whole
from loras import loras

whole()
loras()
