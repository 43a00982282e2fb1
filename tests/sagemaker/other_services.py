"""What moto lacks of the services beside SageMaker: the price list, SageMaker's quotas, what a role may do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sagemaker.settings import Settings
from sagemaker.wire import ACCOUNT, Answer, Request, error, json_answer

_IAM = "https://iam.amazonaws.com/doc/2010-05-08/"

# USD an hour in us-east-1, of the right order; for tests of the format, not of the amounts.
_PRICES = {
    "ml.m5.large": "0.115",
    "ml.m5.xlarge": "0.23",
    "ml.g4dn.xlarge": "0.736",
    "ml.g5.xlarge": "1.408",
    "ml.p3.2xlarge": "3.825",
    "ml.p3.8xlarge": "14.688",
}


def answer(request: Request, settings: Settings) -> Answer | None:
    """Answer if moto would not."""
    if request.action == "GetProducts":
        return json_answer(_products(request))
    if request.action in ("ListServiceQuotas", "GetServiceQuota") and request.parameters["ServiceCode"] == "sagemaker":
        found = [_quota(number, name, value) for number, (name, value) in enumerate(settings.quotas.items())]
        if request.action == "ListServiceQuotas":
            return json_answer({"Quotas": found})
        chosen = [quota for quota in found if quota["QuotaCode"] == request.parameters["QuotaCode"]]
        missing = error(request, "NoSuchResourceException", "The request failed because it specified no such quota.")
        return json_answer({"Quota": chosen[0]}) if chosen else missing
    if request.action == "SimulatePrincipalPolicy":
        return _simulation(request, settings)
    return None


def _products(request: Request) -> dict[str, Any]:
    """Answer GetProducts: the products whose attributes equal all filters."""
    wanted = {item["Field"]: item["Value"] for item in request.parameters.get("Filters", [])}
    found = [product for product in map(_product, _PRICES) if _fits(product, wanted)]
    return {"FormatVersion": "aws_v1", "PriceList": [json.dumps(product) for product in found]}


def _fits(product: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    known = product["product"]["attributes"] | {"productFamily": product["product"]["productFamily"]}
    return all(known.get(field) == value for field, value in wanted.items())


def _product(instance_type: str) -> dict[str, Any]:
    sku = f"SKU{instance_type.upper().replace('.', '')}"
    term, rate = f"{sku}.JRTCKXETXF", f"{sku}.JRTCKXETXF.6YS6EN2CT7"
    price = {
        "unit": "Hrs",
        "beginRange": "0",
        "endRange": "Inf",
        "description": f"${_PRICES[instance_type]} per Training {instance_type} hour in US East (N. Virginia)",
        "rateCode": rate,
        "appliesTo": [],
        "pricePerUnit": {"USD": f"{_PRICES[instance_type]}0000000"},
    }
    return {
        "product": {
            "productFamily": "ML Instance",
            "sku": sku,
            "attributes": {
                "component": "Training",
                "instanceName": instance_type,
                "instanceType": f"{instance_type}-Training",
                "location": "US East (N. Virginia)",
                "locationType": "AWS Region",
                "operation": "RunInstance",
                "platoinstancename": instance_type,
                "platoinstancetype": "Training",
                "regionCode": "us-east-1",
                "servicecode": "AmazonSageMaker",
                "servicename": "Amazon SageMaker",
                "usagetype": f"USE1-Train:{instance_type}",
            },
        },
        "serviceCode": "AmazonSageMaker",
        "terms": {
            "OnDemand": {
                term: {
                    "priceDimensions": {rate: price},
                    "sku": sku,
                    "effectiveDate": "2026-11-01T00:00:00Z",
                    "offerTermCode": "JRTCKXETXF",
                    "termAttributes": {},
                }
            }
        },
        "version": "20261101000000",
        "publicationDate": "2026-11-01T00:00:00Z",
    }


def _quota(number: int, name: str, value: float) -> dict[str, Any]:
    code = f"L-{number:08X}"
    return {
        "ServiceCode": "sagemaker",
        "ServiceName": "Amazon SageMaker",
        "QuotaArn": f"arn:aws:servicequotas:us-east-1:{ACCOUNT}:sagemaker/{code}",
        "QuotaCode": code,
        "QuotaName": name,
        "Value": value,
        "Unit": "None",
        "Adjustable": True,
        "GlobalQuota": False,
    }


def _simulation(request: Request, settings: Settings) -> Answer:
    names = [value for name, value in request.parameters.items() if name.startswith("ActionNames.member.")]
    verdicts = {name: "explicitDeny" if name in settings.denied else "allowed" for name in names}
    members = [
        f"<member><EvalActionName>{name}</EvalActionName><EvalResourceName>*</EvalResourceName>"
        f"<EvalDecision>{verdict}</EvalDecision></member>"
        for name, verdict in verdicts.items()
    ]
    result = f"<EvaluationResults>{''.join(members)}</EvaluationResults><IsTruncated>false</IsTruncated>"
    text = f"<SimulatePrincipalPolicyResult>{result}</SimulatePrincipalPolicyResult>"
    body = f'<SimulatePrincipalPolicyResponse xmlns="{_IAM}">{text}</SimulatePrincipalPolicyResponse>'
    return Answer(body.encode(), content_type="text/xml")
