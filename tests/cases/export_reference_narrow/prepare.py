from broken import whole

whole()
