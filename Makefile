.PHONY: demo test check bench docs
demo test check bench docs:
	@scripts/$@
