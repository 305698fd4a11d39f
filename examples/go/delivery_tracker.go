package main

import (
	"fmt"

	restate "github.com/restatedev/sdk-go"
)

// Delivery is where a parcel has been, in the order of the events. One per key.
type Delivery struct {
	Title     string     `json:"title"`
	Locations []Location `json:"locations"`
}

type Location struct {
	Timestamp int64   `json:"timestamp"`
	Latitude  float64 `json:"latitude"`
	Longitude float64 `json:"longitude"`
}

func register(ctx restate.ObjectContext, delivery Delivery) (restate.Void, error) {
	restate.Set(ctx, "delivery", Delivery{Title: delivery.Title, Locations: []Location{}})
	return restate.Void{}, nil
}

func setLocation(ctx restate.ObjectContext, location Location) (restate.Void, error) {
	delivery, err := getDelivery(ctx, restate.Void{})
	if err != nil {
		return restate.Void{}, err
	}
	delivery.Locations = append(delivery.Locations, location)
	restate.Set(ctx, "delivery", delivery)
	return restate.Void{}, nil
}

// getDelivery fails with a terminal error if the delivery is unknown: it would be no use to try again.
func getDelivery(ctx restate.ObjectSharedContext, _ restate.Void) (*Delivery, error) {
	delivery, err := restate.Get[*Delivery](ctx, "delivery")
	if err != nil {
		return nil, err
	}
	if delivery == nil {
		unknown := fmt.Errorf("delivery %s is not registered", restate.Key(ctx))
		return nil, restate.ToTerminalError(unknown, restate.WithErrorCode(404))
	}
	return delivery, nil
}
