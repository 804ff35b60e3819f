"""What makes a likelihood wrong in silence is caught, and named."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_pyro_programs import VAE as PublishedVAE
from test_pyro_programs import images, pair_of
from torch import nn

from ppgen import decoders, models, posteriors, priors
from ppgen import nn as nets
from ppgen.inference import fit, log_likelihood, log_weights
from ppgen.models import Custom
from ppgen.pair import data_plate

D = 16


def vae(net: nn.Module, decoder=decoders.Bernoulli) -> models.VAE:
    return models.VAE(priors.StandardNormal(2), decoder(net), posteriors.DiagNormal(nets.MLP(D, 4)))


def grey(n=20):
    return torch.rand(n, D)


class TestGreyValues:
    @pytest.mark.parametrize("use", ["fit", "log_likelihood"])
    @pytest.mark.parametrize("validation", [True, False])
    def test_under_a_bernoulli_they_are_refused_by_site(self, use, validation):
        pair = vae(nets.MLP(2, D))
        before = [p.clone() for p in pair.parameters()]
        with pyro.validation_enabled(validation), pytest.raises(ValueError, match=r"'x'.*Bernoulli.*Binarise"):
            if use == "fit":
                fit(pair, grey(), epochs=1, progress=False)
            else:
                log_likelihood(pair, grey(), num_samples=10)
        assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))

    @pytest.mark.parametrize("use", ["fit", "log_likelihood"])
    def test_also_where_the_program_switched_validation_off_and_reshapes(self, use):
        pair = pair_of(PublishedVAE())
        x = torch.rand(len(images()), images().shape[1])
        with pytest.raises(ValueError, match=r"'obs'.*Bernoulli"):
            if use == "fit":
                fit(pair, x, epochs=1, progress=False)
            else:
                log_likelihood(pair, x, num_samples=10)

    def test_under_a_continuous_bernoulli_they_belong(self):
        pair = vae(nets.MLP(2, D), decoders.ContinuousBernoulli)
        assert log_likelihood(pair, grey(), num_samples=10).values.isfinite().all()


class TestTrainMode:
    def test_a_network_that_the_pair_does_not_know_is_named(self, caplog):
        """Scored in a list, it stays in train mode whatever the library does; handed over by name it is found."""
        nets_in_a_list = [nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.25), nn.Linear(8, D))]

        def model(x):
            with data_plate(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=nets_in_a_list[0](z)).to_event(1), obs=x)

        def guide(x):
            with data_plate(x):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        x = grey().round()
        pair = Custom(model, guide)
        with caplog.at_level(logging.WARNING):
            log_likelihood(pair, x, num_samples=10)
            log_likelihood(pair, x, num_samples=10)
        assert len(caplog.messages) == 1 and "Dropout(p=0.25" in caplog.messages[0]
        assert "Custom(model, guide, net=net)" in caplog.messages[0]
        caplog.clear()
        known = Custom(model, guide, net=nets_in_a_list[0])
        with caplog.at_level(logging.WARNING):
            log_likelihood(known, x, num_samples=10)
        assert not caplog.messages
        assert nets_in_a_list[0].training

    @pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(8)], ids=["dropout", "batch norm"])
    def test_weights_without_gradients_in_train_mode_name_the_layer(self, layer, caplog):
        encoder = nn.Sequential(nn.Linear(D, 8), layer, nn.Linear(8, 4))
        pair = models.VAE(priors.StandardNormal(2), decoders.Bernoulli(nets.MLP(2, D)), posteriors.DiagNormal(encoder))
        x = grey().round()
        with caplog.at_level(logging.WARNING):
            log_weights(pair, x, num_samples=3)  # with gradients it is training
            assert not caplog.messages
            with torch.no_grad():
                log_weights(pair, x, num_samples=3)
        assert len(caplog.messages) == 1
        assert "posterior.net.1" in caplog.messages[0] and type(layer).__name__ in caplog.messages[0]
        caplog.clear()
        with caplog.at_level(logging.WARNING), torch.no_grad():
            log_weights(pair.eval(), x, num_samples=3)
        assert not caplog.messages


class TestProbabilitiesWhereLogitsBelong:
    @pytest.mark.parametrize("use", ["fit", "log_likelihood"])
    def test_a_net_that_ends_in_a_sigmoid_is_named_once(self, use, caplog):
        pair = vae(nn.Sequential(nn.Linear(2, D), nn.Sigmoid()))
        x = grey().round()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                if use == "fit":
                    fit(pair, x, epochs=1, progress=False)
                else:
                    log_likelihood(pair, x, num_samples=10)
        assert len(caplog.messages) == 1
        for fact in ("'x'", "Bernoulli", "[0, 1]", "decoder.net.1 is a Sigmoid", "probs="):
            assert fact in caplog.messages[0]

    def test_also_under_a_continuous_bernoulli(self, caplog):
        pair = vae(nn.Sequential(nn.Linear(2, D), nn.Sigmoid()), decoders.ContinuousBernoulli)
        with caplog.at_level(logging.WARNING):
            log_likelihood(pair, grey(), num_samples=10)
        assert len(caplog.messages) == 1 and "ContinuousBernoulli" in caplog.messages[0]

    def test_a_softmax_before_a_categorical_is_named(self, caplog):
        class Labels(nn.Module):
            def __init__(self, last):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 5), *last)

            def forward(self, z):
                return dist.Categorical(logits=self.net(20 * z))

        for last, said in (((nn.Softmax(-1),), 1), ((), 0)):
            torch.manual_seed(0)
            labels = Labels(last)

            def model(x, labels=labels):
                with data_plate(x):
                    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    pyro.sample("x", labels(z), obs=x)

            caplog.clear()
            with caplog.at_level(logging.WARNING):
                log_likelihood(Custom(model, prior_guide, labels=labels), torch.arange(100) % 5, num_samples=10)
            assert sum("Softmax" in message for message in caplog.messages) == said

    @pytest.mark.parametrize("net", [lambda: nets.MLP(2, D), lambda: zeros(nn.Linear(2, D))], ids=["random", "zeros"])
    def test_logits_are_left_alone(self, net, caplog):
        torch.manual_seed(0)
        with caplog.at_level(logging.WARNING):
            log_likelihood(vae(net()), grey().round(), num_samples=10)
        assert not caplog.messages

    @pytest.mark.parametrize(("low", "high", "said"), [(0.1, 0.5, 0), (0.01, 0.99, 1)])
    def test_without_a_sigmoid_in_sight_only_the_whole_range_is_suspicious(self, low, high, said, caplog):
        class Squashed(nn.Module):
            def forward(self, z):
                return torch.linspace(low, high, D).expand(*z.shape[:-1], D)

        with caplog.at_level(logging.WARNING):
            log_likelihood(vae(Squashed()), grey().round(), num_samples=10)
        assert len(caplog.messages) == said

    def test_probabilities_that_are_given_as_such_are_left_alone(self, caplog):
        with caplog.at_level(logging.WARNING):
            log_likelihood(pair_of(PublishedVAE()), images(), num_samples=10)
        assert not caplog.messages


def zeros(layer):
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def prior_guide(x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
