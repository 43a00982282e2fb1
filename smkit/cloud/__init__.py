"""Jobs on SageMaker: everything that speaks to AWS, by boto3 alone. No room here knows torch or local runs."""
