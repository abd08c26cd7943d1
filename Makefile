.PHONY: demo test test-debian12 check coverage bench docs
demo test test-debian12 check coverage bench docs:
	@scripts/$@
