.PHONY: demo test check coverage bench docs
demo test check coverage bench docs:
	@scripts/$@
